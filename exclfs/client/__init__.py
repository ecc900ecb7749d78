"""The client side of the control socket: one sans-IO core, one client for threads and one for trio.

errors        what can go wrong on the way
discovery     from a path to the socket of its server, and whether that is the right server
calls         the core: what is asked, and what an answer means
sockets       descriptors that cross the socket, and sockets that no child may keep
sync_client   connect() and Client
trio_client   the same on trio; nothing else here imports it
"""
