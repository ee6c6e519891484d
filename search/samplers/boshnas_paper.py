def propose_paper(history, candidates, rng):
    raise NotImplementedError
