"""What users of other programs bring with them, turned into our own settings (pure; a command).

One module for each predecessor, a table each: a key, and what becomes of it. Read by
`gpupool import` (commands/import_file.py), by docs/tables.py and by tests/migrate/.
"""
