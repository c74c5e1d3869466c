"""``python -m etcdsem`` runs the command ``etcdsem``."""

import signal

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` begins
    from etcdsem.cli.main import main

    main()
