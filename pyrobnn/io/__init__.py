"""Files: written atomically (`files`), verified when read (`manifest`), and never larger in memory than on disk.

Nothing in here imports, calls or downloads what a file names.
"""
