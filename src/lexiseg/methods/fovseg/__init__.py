"""FOV-Seg: mask tokens that ask the names (TeVA), and patches that learn what they show (FiSeR)."""
