"""Studies: many runs, declared in one file, recorded in one ledger, carried out on this machine or on a cluster."""
