"""The algorithm as pure code: it has no clock, socket, thread or random number source of its own.

`commands` is the contract with the drivers, `keys` defines the keys in etcd, `transactions` builds
the protocol's transactions, `decisions` interprets snapshots, and `leases` keeps etcd leases alive.
Each verb has a module: `acquire`, `wait`, `release`, `reconcile`, `lifecycle`.
"""
