"""What people say of answers: completions that a key keeps, ratings and corrections on them, and training data made of these."""
