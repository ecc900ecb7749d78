"""The client side of the control socket: one sans-IO core, one client for threads and one for trio.

errors           what can go wrong on the way
discovery        from a path to the socket of its server, and whether that is the right server
locations        from a path to where it lies in the mount
sockets          descriptors that cross the socket, and sockets that no child may keep
calls            the core: what is asked, and what an answer means
sync_connection  carries calls to and fro, blocking
sync_client      connect(), Client and Events
functions        the functions of exclfs
trio_connection  carries calls to and fro on trio; with the next, nothing else here imports it
trio_client      all that on trio
"""
