"""`python3 -m lorafleet_gateway serve`."""

from lorafleet_gateway.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
