"""Why something cannot be removed, renamed or unmounted: what holds it, what the host does with it, and what uses it.

asking       `exclfs.why`: everything below put together
attempts     what somebody may try to do with a path, and with which error the kernel will answer
subject      what is asked about: one path, opened so that its filesystem is asked nothing more
findings     what the finders below find: causes, and what could not be read

holding      holds, in sentences
answering    what a server says of itself, in the xattr exclfs.why: holds, and the little that it knows besides

The rest are finders, each for one noun, each from the host's own words (exclfs.host) to causes in sentences. A finder
says which attempts fail because of what it has found, and leaves it to `attempts` which of several errors comes first.
"""
