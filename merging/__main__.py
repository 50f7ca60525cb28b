"""`python -m merging COMMAND`: the same as `merging COMMAND`."""

from merging.cli.main import command

if __name__ == "__main__":
    command()
