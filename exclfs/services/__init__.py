"""What a server does beside the filesystem: the log of its events, and the control socket."""
