"""`python -m pyrobnn` is the command line."""

from pyrobnn.cli.main import main

if __name__ == "__main__":
    main()
