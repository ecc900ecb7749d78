"""Which errno a program gets: the one table at the FUSE edge."""

from __future__ import annotations

import errno
from typing import Final

from exclfs.holds.errors import BadHold, Gone, Held, HoldError, NoSuchHold, NotKept, NotPermitted, UnknownFlag

ERRNOS: Final[dict[type[HoldError], int]] = {
    Held: errno.EBUSY,
    Gone: errno.ESTALE,
    NotPermitted: errno.EPERM,
    NoSuchHold: errno.ENODATA,
    NotKept: errno.EIO,
    BadHold: errno.EINVAL,
    UnknownFlag: errno.EINVAL,
}

REFUSED: Final = errno.EBUSY
"""What a removal gets that a hold refuses."""
NO_ATTRIBUTE: Final = errno.ENODATA
"""What an xattr gets that is not there (ENOATTR)."""
READ_ONLY: Final = errno.EPERM
"""What setting or removing an xattr gets that can only be read."""
UNEXPECTED: Final = errno.EIO
"""What one request gets when its handler has failed; the traceback is in the log."""


def of(error: HoldError) -> int:
    """The errno of this error."""
    return ERRNOS.get(type(error), UNEXPECTED)
