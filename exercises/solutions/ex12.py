def gradient_score(G):
    return G.square().sum().sqrt().item()


def snip_score(W, G):
    return (W * G).abs().sum().item()


def allocate(scores, costs, budget):
    enabled, left = [], budget
    for name in sorted(scores, key=lambda name: (-scores[name], name)):
        if costs[name] <= left:
            enabled.append(name)
            left -= costs[name]
    return enabled
