"""The modules of a warm container's first process. They import only the standard library, and run on Python 3.9 and newer."""
