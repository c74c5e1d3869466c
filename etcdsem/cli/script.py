"""The script ``etcdsem``, installed as a module of its own, `_etcdsem_command`.

So SIGINT ends the process silently even while etcdsem is being imported, which takes a moment.
"""

import signal


def start() -> None:
    """Run the command line. Until `main` begins, SIGINT has its default action."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from etcdsem.cli.main import main

    main()
