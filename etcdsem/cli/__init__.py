"""The command line. `main.py` is the entry point; commands are loaded only when they are called.

Nothing here decides about leases: it reads settings, calls the library, prints, and (`run`) keeps
a command from outliving its lease. The library does not import this package.
"""
