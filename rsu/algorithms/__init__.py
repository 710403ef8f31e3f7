"How samples are forgotten: the verb, its base class, and the published algorithms."
