"""captum's paths of what its users import from here."""
