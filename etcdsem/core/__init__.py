"""The algorithm, pure: no clock, socket, thread or random number of its own.

`commands` is the contract with the drivers, `keys` names what lies in etcd, `transactions`
builds the protocol's transactions, `decisions` reads snapshots, `leases` keeps etcd leases
alive. There is a module for each verb: `acquire`, `wait`, `release`, `reconcile`, `lifecycle`.
"""
