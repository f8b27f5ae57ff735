"""MACs of MSDNet's published CIFAR nets, multiplied out layer by layer and scale by scale."""

GROWTH, WIDTH, FACTORS, HIDDEN = 6, 16, (1, 2, 4), 128


def layers_before(blocks, base, step, linear):
    """How many layers stand before each classifier."""
    ends, layer = [], 0
    for i in range(blocks):
        layer += base if i == 0 else step * i + 1 if linear else step
        ends.append(layer)
    return ends


def bottleneck(channels_in, channels_out, factor, side_in, side_out):
    inner = min(channels_in, factor * channels_out)
    return channels_in * inner * side_in**2 + inner * channels_out * 9 * side_out**2


def cell_macs(ends, side, channels):
    """MACs of making the map of each layer (0: the first convolutions) and scale, ``{(layer, scale): macs}``, and the
    coarsest map's channels behind each layer."""
    total = ends[-1]
    interval = -(-total // 3)
    sides = [side, side // 2, side // 4]
    cost = {(0, 0): channels * WIDTH * 9 * side**2}
    for s in (1, 2):
        cost[0, s] = WIDTH * FACTORS[s - 1] * WIDTH * FACTORS[s] * 9 * sides[s] ** 2
    width, coarse = WIDTH, [WIDTH * FACTORS[2]]
    for layer in range(1, total + 1):
        first, first_before = (layer - 1) // interval, max(layer - 2, 0) // interval
        grown = width + GROWTH
        kept = grown // 2 if first > first_before else grown
        for s in range(first, 3):
            g, own = GROWTH * FACTORS[s], width * FACTORS[s]
            if s > first_before:
                finer = width * FACTORS[s - 1]
                macs = bottleneck(finer, g // 2, FACTORS[s - 1], sides[s - 1], sides[s])
                macs += bottleneck(own, g // 2, FACTORS[s], sides[s], sides[s])
            else:
                macs = bottleneck(own, g, FACTORS[s], sides[s], sides[s])
            if kept != grown:
                macs += grown * FACTORS[s] * kept * FACTORS[s] * sides[s] ** 2
            cost[layer, s] = macs
        width = kept
        coarse.append(width * FACTORS[2])
    return cost, coarse


def needed(layer, s, cost):
    """All maps that the map at ``layer``, ``s`` is made of, itself included."""
    needs, waiting = set(), [(layer, s)]
    while waiting:
        at = waiting.pop()
        if at in cost and at not in needs:
            needs.add(at)
            layer, s = at
            waiting += [(layer - 1, s), (layer - 1, s - 1)] if layer else [(0, s - 1)]
    return needs


def exit_macs(ends, side=32, channels=3, num_classes=10):
    """MACs up to and with each classifier, no other head counted: only what it needs, then everything up to it."""
    cost, coarse = cell_macs(ends, side, channels)
    half = -(-(side // 4) // 2)
    quarter = -(-half // 2)
    lazy, eager = [], []
    for layer in ends:
        head = coarse[layer] * HIDDEN * 9 * half**2 + HIDDEN**2 * 9 * quarter**2 + HIDDEN * num_classes
        lazy.append(sum(cost[at] for at in needed(layer, 2, cost)) + head)
        eager.append(sum(macs for (at, _), macs in cost.items() if at <= layer) + head)
    return lazy, eager
