"Settings, data, recipes and models: what every other part uses."
