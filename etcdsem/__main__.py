"""``python -m etcdsem`` runs the command ``etcdsem``."""

from etcdsem.cli.main import main

if __name__ == "__main__":
    main()
