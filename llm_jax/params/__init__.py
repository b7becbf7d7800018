"""What may be done to parameters: trees of weights, each with its ``ParamSpec``."""
