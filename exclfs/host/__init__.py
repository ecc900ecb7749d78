"""What the host says of itself: processes and mounts, read from /proc. Nothing here knows of holds' rules."""
