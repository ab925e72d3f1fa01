"""`python3 -m lorafleet_operator run`."""

from lorafleet_operator.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
