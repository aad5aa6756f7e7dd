"""Rules that change the backward pass, by interception in torch's dispatcher: no hooks, nothing on the model."""
