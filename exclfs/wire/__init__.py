"""The contract of the control socket, sans-IO: bytes in, typed calls and replies out, and back. Both ends use it.

framing      bytes to JSON objects and back
causes       what something has to do with a path
shapes       holds and events as JSON, also for the xattrs, the log and --json
errors       the errors of the interface, typed, in one table
messages     the methods: their typed parameters and replies
envelope     the messages that carry them
description  what introspection answers
"""
