"""`python -m service`: serve until a signal; the options are those of `ign serve`."""

from service.cli import command

if __name__ == "__main__":
    command.main(prog_name="python -m service")
