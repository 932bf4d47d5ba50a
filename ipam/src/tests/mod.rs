mod allocation;
