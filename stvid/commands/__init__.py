"""The commands of `stvid.cli`, one file each, thin over the Python API: ``run(argv)`` returns the exit code."""
