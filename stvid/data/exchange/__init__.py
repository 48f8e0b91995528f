"""Lists of videos that other programs write: tools that people label with, and libraries of data sets."""
