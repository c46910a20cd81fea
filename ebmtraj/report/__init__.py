"""What a person looks at: tables, figures and video."""
