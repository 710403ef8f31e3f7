"Erasure requests: a ledger, a stream of requests, and the reports on them."
