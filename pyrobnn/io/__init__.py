"""Files: written whole or not at all (`files`), checked when read (`manifest`), bounded by their own size.

Nothing in here imports, calls or downloads what a file names.
"""
