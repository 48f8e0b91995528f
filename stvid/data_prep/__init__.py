"""``stvid-prep``: from official annotations and downloaded files to a data set that trains without surprises.

The commands work on lists of videos (`stvid.data.manifest`). What takes long goes through `jobs`, which
shows its progress, goes on where it was interrupted, and lists every file that failed.
"""
