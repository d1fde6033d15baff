"""Training-graph IR: frozen nodes, one record per op, a verifier per stage and a text form."""
