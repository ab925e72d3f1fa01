"""`lorafleet-gateway keys new NAME`: makes a key and the entry that the file of keys has for it."""

import argparse
import sys
from collections.abc import Sequence

from lorafleet_common.errors import ConfigError
from lorafleet_common.keys.guard import hash_of, new_key
from lorafleet_common.options import integer
from lorafleet_contract.keys import KeysError, read_entry


def main(arguments: Sequence[str]) -> int:
    """Run `keys …`; return the exit status.

    Raises:
        ConfigError: an argument is none that an entry may have.
        SystemExit: help was asked for, or an argument is unknown or missing.
    """
    parsed = _parser().parse_args(arguments)
    key = new_key()
    limits = {
        "requestsPerMinute": parsed.requests_per_minute,
        "tokensPerMinute": parsed.tokens_per_minute,
        "maxConcurrentRequests": parsed.max_concurrent_requests,
    }
    given = {name: value for name, value in limits.items() if value is not None}
    models = {"models": parsed.models.split(",")} if parsed.models is not None else {}
    try:
        entry = read_entry({"name": parsed.name, "hashes": [hash_of(key)], **models, **given})
    except KeysError as error:
        raise ConfigError("keys new", str(error)) from None
    sys.stderr.write("The key, which is shown this once, and its entry for the file of keys:\n")
    sys.stdout.write(f"{key}\n{entry.model_dump_json(by_alias=True, exclude_none=True)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lorafleet-gateway keys", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser(
        "new", help="make a key, and print it and its entry for the file of keys", allow_abbrev=False
    )
    new.add_argument("name", metavar="NAME", help="of the key, as metrics and logs show it")
    new.add_argument(
        "--models", metavar="NAMES", help="served names, separated by commas; `*` at an end stands for any rest"
    )
    new.add_argument("--requests-per-minute", metavar="NUMBER", type=integer)
    new.add_argument("--tokens-per-minute", metavar="NUMBER", type=integer)
    new.add_argument("--max-concurrent-requests", metavar="NUMBER", type=integer)
    return parser
