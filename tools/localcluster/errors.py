"""What can go wrong, for the reader of the message."""


class LocalClusterError(Exception):
    """The local cluster cannot go on; the text is one sentence that says what to do."""
