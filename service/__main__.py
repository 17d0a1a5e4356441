"""`python -m service` is `leadkeep`."""

from service.cli.main import main

if __name__ == "__main__":
    main()
