"""What moving bytes costs: groups, collectives, exchanges."""
