"""The pyfuse3 side: a request becomes a question to the keeper, an answer becomes an errno or PROCEED.

Only this package imports pyfuse3.
"""
