"""`python -m cogrpo_client` is the `cogrpo` command."""

from cogrpo_client.cli import main

if __name__ == "__main__":
    main()
