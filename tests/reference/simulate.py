"""What a policy does on a table, one sample and one exit after the other."""

import numpy as np
from reference.confidence import confidence, patience


def simulate(logits_nek, trunk_e, head_e, measure, threshold_e, temperature_e):
    """Exit and MACs of every sample."""
    exits, macs = [], []
    for row_ek in np.asarray(logits_nek, np.float64):
        paid, answers = 0, []
        for e, threshold in enumerate(threshold_e):
            if threshold is None:
                continue
            paid += head_e[e]
            z_k = row_ek[e] / temperature_e[e]
            answers.append(int(np.argmax(z_k)))
            sure = patience(answers, len(threshold_e)) if measure == "patience" else confidence(z_k, measure)
            if e == len(threshold_e) - 1 or sure >= threshold:
                exits.append(e)
                macs.append(trunk_e[e] + paid)
                break
    return np.array(exits), np.array(macs)
