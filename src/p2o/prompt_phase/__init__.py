"""The prompt phase: GEPA evolves instructions under which the present policy solves its hard questions."""
