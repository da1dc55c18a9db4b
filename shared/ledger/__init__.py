"""A hospital's ledger: what its gate writes before anything leaves, and what an auditor reads. No PyTorch, no network."""
