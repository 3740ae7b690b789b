//! What the page of a composition shows, as plain data.

/// Ways to make one adapter of several, held against each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CompositionPage {
    /// What the page is called, as `octopus + sticker`.
    pub title: String,
    /// Name of the base that the pictures and measures are of.
    pub base: Option<String>,
    /// What is composed, in its order.
    pub members: Vec<ComposedMember>,
    /// One for each way, in the order of the table.
    pub methods: Vec<ComposedMethod>,
    /// kohya's names of all layers; [`ComposedMethod::layer_rho`] goes by their order.
    pub layers: Vec<String>,
    /// Every pair of members.
    pub pairs: Vec<PairOverlap>,
    /// What [`ComposedMethod::is_within_rule`] is about, as one sentence.
    pub rule: Option<String>,
    /// Share of the base's pixels that are 0 or 255, 0 to 1.
    pub base_clipped_share: Option<f64>,
    /// What the reader should know, a sentence each.
    pub notes: Vec<String>,
    /// What base, members and results draw.
    pub pictures: Option<PictureGrid>,
}

/// One of the adapters that are composed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ComposedMember {
    /// Its file.
    pub name: String,
    /// Its strength.
    pub scale: f64,
    /// Its rank or ranks.
    pub rank: Option<String>,
    /// The prompt with its trigger.
    pub prompt: Option<String>,
    /// As of [`ComposedMethod`], for the member alone at its strength.
    pub x0_std_ratio: Option<f64>,
    /// As of [`ComposedMethod`].
    pub clipped_share: Option<f64>,
}

/// One way to compose, and what comes of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ComposedMethod {
    /// As the command line names it.
    pub name: String,
    /// Largest over the layers of sigma_max(result) / max_i sigma_max(w_i dW_i).
    pub rho_max: Option<f64>,
    /// Its mean.
    pub rho_mean: Option<f64>,
    /// The layer where it is largest.
    pub worst_layer: Option<String>,
    /// ||result||_F / sqrt(sum of ||w_i dW_i||_F^2): 1 where members are orthogonal.
    pub norm_ratio: Option<f64>,
    /// ||result - sum||_F / ||sum||_F.
    pub difference_from_sum: Option<f64>,
    /// Of its factors.
    pub rank: Option<usize>,
    /// Size of its file.
    pub num_bytes: Option<u64>,
    /// ||e - e_base - sum of (e_i - e_base)|| / ||e - e_base|| of predictions e.
    pub additivity_error: Option<f64>,
    /// Spread of the predicted x0 over the base's.
    pub x0_std_ratio: Option<f64>,
    /// Share of pixels that are 0 or 255, 0 to 1.
    pub clipped_share: Option<f64>,
    /// That over the base's.
    pub clipped_ratio: Option<f64>,
    /// Whether [`CompositionPage::rule`] is kept.
    pub is_within_rule: Option<bool>,
    /// rho of each of [`CompositionPage::layers`]; may be empty.
    pub layer_rho: Vec<Option<f64>>,
}

/// How much of each other two members are, as means over the layers of both.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairOverlap {
    /// A member's name.
    pub first: String,
    /// The other's.
    pub second: String,
    /// phi of the whole input sides.
    pub input: f64,
    /// phi of the whole output sides.
    pub output: f64,
    /// What random subspaces of these sizes would have.
    pub random_input: Option<f64>,
    /// The same of the output side.
    pub random_output: Option<f64>,
    /// Cosine of the two changes as vectors.
    pub cosine: f64,
    /// Layers of both.
    pub num_layers: usize,
}

/// Pictures by who drew them and of which prompt, all from the same noise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureGrid {
    /// A column each.
    pub prompts: Vec<String>,
    /// The base, the members, the methods.
    pub rows: Vec<PictureRow>,
}

/// What one model draws.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureRow {
    /// Who.
    pub name: String,
    /// PNG files, one a prompt; `None` where none was drawn.
    pub pictures: Vec<Option<Vec<u8>>>,
}
