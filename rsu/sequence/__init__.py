"In what order samples are forgotten: groups, orders and policies."
