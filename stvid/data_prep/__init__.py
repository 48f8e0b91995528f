"""The former package of what prepares data, for one release: its modules lie in `stvid.data` now."""
