def initial(wte, p):
    return wte[torch.randperm(len(wte), device=wte.device)[:p]].clone()


def embed(prompt, tokens, wte, wpe):
    length = len(prompt) + tokens.shape[1]
    if length > len(wpe):
        raise ValueError(f"the prompt and the text have {length} positions together, and this "
                         f"model's context {len(wpe)}")
    prompts = prompt.expand(len(tokens), -1, -1)
    return torch.cat((prompts, wte[tokens]), dim=1) + wpe[:length]


def kept(outputs, p):
    return outputs[:, p:]
