"""The command line. `main.py` is its door; every command is loaded only when it is called.

Nothing here decides about leases: it reads settings, asks the library, shows, and (`run`) keeps
a command from outliving its lease. Nothing of the library imports this package.
"""
