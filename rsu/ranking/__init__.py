"Who is at risk: signals of membership, reference models, and rankers."
